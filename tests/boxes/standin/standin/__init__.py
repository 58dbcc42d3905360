"""The stand-in for srcds: the console, A2S and RCON of the real one, as far as a test asks for them."""
