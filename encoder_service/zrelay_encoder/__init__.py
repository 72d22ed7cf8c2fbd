"""The encoder service: turns prompts into prompt_embeds with the first blocks of a Qwen3.

Modules import only from the right:

    api -> runtime -> embedding -> model
                   -> prompts

- `api`: the servicer, request parsing, the list of capabilities. The only part that sees messages.
- `runtime`: loads the checkpoint and answers parsed requests: format, fit, embed.
- `embedding`: from token sequences to embeddings. It decides which sequences share a forward pass.
- `prompts`: from a prompt to token ids: chat template, Omni segments, token limits.
- `model`: the network, loading, and the fingerprint.

Where two planned features belong:

- Batching across callers: `embedding.Embedder.embed` hands each task to the device worker on its own. A scheduler that
  merges the sequences of waiting tasks replaces that one call. `embed_sequences` already takes ragged batches, and a
  result does not depend on the rest of its batch.
- An embedding cache: every use of the model goes through `embedding.Embedder.embed`, which would consult the cache.
  Token ids, layer plan and dtype of an `EmbeddingTask`, with the encoder's fingerprint, are the key.
"""
