"""The mathematics of PRIME as pure tensor functions: no configuration, no input or output, no ranks.

Shapes: B responses, T positions (right-padded), G groups (prompts). A mask [B, T] is True on response
tokens; `group` [B] says which prompt a response answers.
"""
