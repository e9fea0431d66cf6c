"""Who acts: access tokens become identities (`oidc`), identities are bound to addresses (`leases`), and agents can
trust the gateway (`ca`). A token is verified and forgotten: what stays is its claims and its SHA-256.
"""
