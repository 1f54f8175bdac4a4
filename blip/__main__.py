from blip.cli import main

main()
