"""Every claim of the paper beside what the records say of it: experiments/CLAIMS.md, made from the records alone."""
