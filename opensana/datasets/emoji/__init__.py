"""The emoji set of the embedded model: pictures without ground, each with several captions."""
