"""The retrieval process: lexical and vector search over articles, fused, then reranked."""
