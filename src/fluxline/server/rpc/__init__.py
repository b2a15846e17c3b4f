"""The gRPC door: image_gen.proto, the code made of it, and who answers it."""
