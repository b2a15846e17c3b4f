"""What the READMEs of four systems before us tell their users to run, word for word.

Only addresses are put in place of theirs. Keys that they do not know of go into curl's own
configuration, so that the commands stay as they are.
"""

FLUE = """\
curl -X POST http://localhost:8080/v1/images/generations \\
-H "Content-Type: application/json" \\
-d '{
  "prompt": "A futuristic city skyline at sunset",
  "width": 512,
  "height": 512,
  "steps": 4,
  "guidance_scale": 7.5
}'
"""

DUAL_FP4 = """\
curl -X POST "http://localhost:8000/generate" \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "A beautiful sunset over mountains",
    "num_inference_steps": 30,
    "guidance_scale": 4.0,
    "width": 768,
    "height": 768,
    "seed": 42,
    "negative_prompt": "blurry, low quality"
  }'
"""

DUAL_BF16 = """\
curl -X POST "http://localhost:8001/generate" \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "A beautiful sunset over mountains",
    "num_inference_steps": 30,
    "guidance_scale": 4.0,
    "width": 768,
    "height": 768,
    "seed": 42
  }'
"""

DUAL_APPLY_LORA = """\
curl -X POST "http://localhost:8001/apply-lora" \\
  -H "Content-Type: application/json" \\
  -d '{
    "lora_name": "username/model-name",
    "lora_weight": 0.8
  }'
"""

DUAL_STATUS = """\
# FP4 service
curl http://localhost:8000/model-status

# BF16 service
curl http://localhost:8001/model-status
"""

DUAL_HEALTH = """\
# FP4 service
curl http://localhost:8000/health

# BF16 service
curl http://localhost:8001/health
"""

DUAL_ENDPOINTS = (
    "GET /",
    "POST /load-model",
    "GET /model-status",
    "POST /remove-lora",
    "GET /lora-status",
    "GET /loras",
    "GET /health",
)
"""All that it lists but for those that have an example of their own."""

GRPC_CLIENT = """\
import grpc
import image_gen_pb2, image_gen_pb2_grpc

channel = grpc.insecure_channel("localhost:50051")
stub = image_gen_pb2_grpc.ImageGenStub(channel)

metadata = [("api-key", "client1")]
response = stub.Generate(
    image_gen_pb2.GenerateRequest(
        prompt="a futuristic cityscape",
        height=512,
        width=512,
        num_inference_steps=15,
        guidance_scale=7.5
    ), metadata=metadata
)

with open("output.png", "wb") as f:
    f.write(response.image_png)
"""

GRPC_PROTO = """\
syntax = "proto3";
package imagegen;

service ImageGen {
rpc Ping(PingRequest) returns (PingResponse);
rpc Generate(GenerateRequest) returns (GenerateResponse);
}

message PingRequest {}

message PingResponse {
  string message = 1;  // Returns "Pong"
}

message GenerateRequest {
  string prompt = 1;
  int32 height = 2;
  int32 width = 3;
  int32 num_inference_steps = 4;  // Must be between 1 and 20
  float guidance_scale = 5;       // Must be between 1.0 and 10.0
}

message GenerateResponse {
  bytes image_png = 1;  // PNG-encoded image
}
"""
"""The messages and calls as that README prints them, in the package of its proto: what a client
that was built long ago was built from."""

GRPC_METRICS = "curl http://localhost:8000/metrics"
GRPC_METRICS_KEYS = {"cpu_percent", "ram_used_mb", "gpu_used_mb", "worker_alive", "grpc_alive"}
