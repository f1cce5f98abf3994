"""The former name of minilm.deploy.huggingface."""

from minilm.deploy.huggingface import main

if __name__ == "__main__":
    main()
