"""How pre-activations become sparse latents: one small final class per file.

``base`` states the contract; the coder never knows which activation it has.
"""
