"""Evaluates models on every benchmark of the paper, with batching, several processes, resuming, judging and reports.

    python -m videollama2.eval run mvbench --model-path NAME --data eval/mvbench --output eval_output/mvbench

``benchmarks/`` defines what is asked and which answers are right, ``runner`` gets answers from the engine, ``store``
keeps them on disk, ``answers`` and ``strict`` read the chosen option, ``judging/`` lets a language model grade open
answers, ``report/metrics`` averages, and ``subtitles`` chooses a prompt's subtitles. Importing this package imports
none of them.
"""
