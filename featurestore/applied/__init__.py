"""Applied definitions: recorded in a journal, compared before a change, and read back without their code."""
