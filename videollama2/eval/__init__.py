"""Evaluation: every benchmark of the paper, batched, sharded, resumable, judged, reported.

    python -m videollama2.eval run mvbench --model-path NAME --data eval/mvbench --output eval_output/mvbench

``benchmarks/`` says what is asked and what counts as right, ``runner`` gets answers from the engine, ``store`` keeps
them on disk, ``answers`` reads them, ``judging/`` has them judged, ``report/metrics`` averages, ``subtitles`` chooses a
prompt's subtitles. Importing this package imports none of them.
"""
