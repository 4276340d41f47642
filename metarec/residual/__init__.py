"""How a user's weights are composed from a pretrained base and what is meta-learned and adapted."""
