"""Data: rows to tokenised prompts and demonstrations, an endless stream of prompts, batches."""
