"""The Open Inference Protocol v2 as JSON, binary tensors and protobuf messages, without any I/O."""
