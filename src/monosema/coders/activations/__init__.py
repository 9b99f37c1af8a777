"""How pre-activations become sparse latents: one small final class per file.

``base`` states the contract of the module, ``family`` that of its options, ``configs`` has the built-in ones and
``registry`` finds them by name or saved rule. Nothing else in the library knows an activation by its name.
"""
