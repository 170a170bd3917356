"""The command line: what ``jaccli COMMAND`` does, from the words that were typed to an exit code.

    argv → boundary → app (Typer) → requests (checked values, no torch) → work (imports torch)
         → records, or blocks of J → sink → exit code, by boundary

In:  the words of a command line, standard input.
Out: results on standard output or in a file, messages on standard error, an exit code.
Why: a wrong command line is answered before torch is imported, and no text of the shell reaches the library.

boundary         exceptions to exit codes and error messages; messages, flags, grouping: what is said on standard error
app              the commands with their help; command: their class; option: dataclass fields as options
*request         one dataclass for each group of options: request (what J is of), run_request (how), output_request
                 (where to), figures_request, train_request; parse: the values of options, from text
cmd_*            the body of each command: requests → work → records → results; cmd_compute, cmd_deviation,
                 cmd_spectrum (with lyapunov_chain), cmd_bench, cmd_regularize, cmd_layers, cmd_show, cmd_doctor
opening          the first steps that commands share: checks, limits (endings), loading; results: the last step
work             MODEL and INPUT to a network on its device; J of layer pairs, in blocks
figures          figures of every pair and sample, exact or estimated, as records; deviation_table and spectrum_table:
                 the same for people
job, weights     ``regularize``: the run made ready, the file written; training_view, training_report: what is shown
console          whether a terminal can be drawn on; progress: the bar and the status line there

Nothing here computes: a command takes what the library returns and gives it to a sink.
"""
