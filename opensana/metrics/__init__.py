"""What tells how good pictures, captions and reconstructions are; the networks that tell it."""
