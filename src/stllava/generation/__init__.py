"""How a policy speaks: by decoding trees of questions and answers here, or by asking a server."""
