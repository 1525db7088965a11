"""The commands as functions, for a program or a notebook; `mint_train` offers each."""
