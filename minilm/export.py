"""The former name of minilm.deploy.huggingface, with its --format, of which there was only one."""

import argparse

from minilm.deploy.huggingface import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--format", choices=["transformers"])
    main(parser.parse_known_args()[1])
