"""What a person sees: tables and progress on a terminal, curves as pictures."""
