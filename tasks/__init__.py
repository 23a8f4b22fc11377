"""The stages of Regraft: data, embedding, head, evaluation, registry."""
