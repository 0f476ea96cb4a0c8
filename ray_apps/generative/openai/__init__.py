"""OpenAI's protocol: requests, errors and streams, without I/O."""
