"""The vision service: images to SigLIP2 grids and Qwen3-VL hidden states, and prompts conditioned by them.

Modules import only from the right:

    api -> operations -> runtime -> siglip -> engines, images
                                 -> conditioning -> qwen3_vl -> engines, images

- `api`: the servicer, request parsing, replies, the list of capabilities. The only part that sees messages.
- `operations`: what each call does: encode images, score images, condition a prompt.
- `runtime`: loads the engines, and admits calls to the threads that they run on.
- `siglip`, `qwen3_vl`: one engine each, from the folder of a checkpoint to tensors.
- `conditioning`: blends hidden states into a prompt. Free functions over tensors.
- `images`: image files, the store of received files, a cache bounded in bytes.
- `engines`: what the engines have in common.
"""
