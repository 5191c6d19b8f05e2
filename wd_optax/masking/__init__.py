"""Which parameters decay, and by how much: a mask is data, resolved from the parameters.

A mask gives every leaf a multiplier m: 0 never decays, 1 decays, 0.1 decays at a tenth of the rate. It is one of

    None                   every leaf: 1
    "weights"              weights and embeddings: 1; biases, norms, scalars, tokens: 0 (by role, see `roles`)
    [(regex, m), ...]      the first rule whose regex is found in the path decides (`re.search`), unmatched leaves: 0;
                           m is a number or "weights", a regex alone is (regex, 1.0), and a rule that decides nothing is
                           an error
    tree                   bools or numbers, for the same paths or for their prefixes, in any container
    callable               params -> one of the above (prefer rules: they can be printed and checked)

Frameworks differ on position tables (`pos_embed`, `wpe`): nanoGPT decays them, timm and big_vision's default don't.
"weights" decays them, as every table; [("pos_?emb|wpe", 0), (".*", "weights")] doesn't. Tables of relative position
biases are biases. "weights" goes by names: where a class hides them it raises, where plain lists have none it warns.
"""
