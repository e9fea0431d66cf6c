"""Who acts: access tokens become identities (`oidc`), identities are bound to addresses (`leases`). A token is verified
and forgotten: what stays is its claims and its SHA-256.

Whom agents trust: the gateway's CA (`ca`, with `certificate`, `constraints` and `signer`), and what relays show in the
names of servers (`mint`). What the gateway logs in with in the place of agents: `secrets` (`credential`, `sealing`).

What must never happen here: a token, password or private key in plaintext on the disk (but for key files of mode 0600),
in an error, in a log or in a core dump (`undumpable`); of files that belong together, one changes alone (`staged`).
"""
