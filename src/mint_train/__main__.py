from mint_train.cli.main import main

main()
