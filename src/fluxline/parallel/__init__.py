"""One picture on many devices: ranks that each hold a part and exchange what the others need.

Knows tensors, process groups and the shape of a transformer over tokens; no family, no request.
"""
