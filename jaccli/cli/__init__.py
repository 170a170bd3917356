"""The command line: what ``jaccli COMMAND`` does, from the words that were typed to an exit code.

    argv → boundary → app (Typer) → requests (checked values, no torch) → work (imports torch)
         → records, or blocks of J → sink → exit code, by boundary

boundary         exceptions to exit codes and error messages; messages, flags, grouping: what is said on standard error
app              the commands with their help; command: their class; option: dataclass fields as options
*request         one dataclass for each group of options; parse: the values of options, from text
cmd_COMMAND      the body of a command: requests → work → records → results
opening          the first steps that commands share: checks, limits (endings), loading; results: the last step
work             MODEL and INPUT to a network on its device; J of layer pairs, in blocks
figures          figures of every pair and sample, exact or estimated, as records; *_table: the same for people
job, weights     ``regularize``: the run made ready, the file written; training_view, training_report: what is shown
console          whether a terminal can be drawn on; progress: the bar and the status line there

Nothing here computes: a command takes what the library returns and gives it to a sink.
"""
