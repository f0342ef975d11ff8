"""The APIs that programs speak: OpenAI's, A1111's, and that of opensana."""
