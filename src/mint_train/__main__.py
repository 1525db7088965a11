from mint_train.cli import main

main()
