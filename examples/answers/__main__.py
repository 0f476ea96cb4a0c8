"""Run the example: python -m examples.answers [--home FOLDER] [--questions N]"""

from examples.answers.demo import main

if __name__ == "__main__":
    main()
