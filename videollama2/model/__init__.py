"""Neural networks: vision encoder, connectors, the composed model and its checkpoint names.

Nothing here knows of files with videos, of prompts or of tokenizers. Shape letters everywhere: B batch, T frames,
C channels, H height, W width, N visual tokens or patches, L sequence, D hidden, V vocabulary.
"""
