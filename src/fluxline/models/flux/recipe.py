"""Which layers of a FLUX's transformer may be held in fewer bits. What is not in the table stays.

Those are the embedders, the modulation and the last layer, which see the noise level and the
colours themselves: little of the work and most of the harm.
"""

TRANSFORMER = (
    "double_blocks.*.to_qkv",
    "double_blocks.*.to_out",
    "double_blocks.*.mlp_in",
    "double_blocks.*.mlp_out",
    "single_blocks.*.proj_in",
    "single_blocks.*.proj_out",
)
