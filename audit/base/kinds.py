"""The kinds of paths: what they mean to compute, and which of them a bound judges."""

KINDS = {
    "kl": "Means to compute KL, and is gated by its bound.",
    "identity": "Means to give a known value, and is gated by its bound.",
    "estimator": "Estimates KL from a sampled token or in coarse steps; compared with what it means to give.",
    "misuse": "A known mistake: compared with the exact value of its own formula, beside the KL that was meant.",
}
GATED = ("kl", "identity")
# What a file may hold besides distributions: log-probabilities of sampled tokens, each a row of one number.
TOKENS = "token_log_probs"
