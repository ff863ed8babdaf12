"""`openprime data`: rows of any origin to rows that are worth training on."""
