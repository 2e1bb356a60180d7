"""Queues requests that wait for a row of the batch, and has their media read ahead and encoded.

Callers add requests on any thread; the model's thread takes them out. A request is ready when its media are read. Media
are read for the requests at the front of the queue only, since those of all would take too much memory, and encoded for
as many as could run next, together. On a CPU, where that takes seconds, it is done in several rounds of the engine, so
that requests whose media are encoded, and those that are running, go on in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition

from videollama2.config import VideoLlama2Config
from videollama2.inference.media.encoder import MediaEncoder
from videollama2.inference.media.read_ahead import ReadAhead
from videollama2.inference.media.reader import MediaReader
from videollama2.inference.task import Task
from videollama2.processing import media_tokens


class RequestQueue:
    """The queue.

    Args:
        max_length: number of positions of a row, into which prompt and answer must fit.
        most_read: number of requests, from the front, whose media are read.
        threads: number of threads that read media; 0 reads them when they are needed.
        wake: called when media have been read.
    """

    def __init__(
        self,
        config: VideoLlama2Config,
        reader: MediaReader,
        encoder: MediaEncoder,
        max_length: int,
        most_read: int,
        threads: int,
        wake: Callable[[], None],
    ) -> None:
        self._config, self._encoder, self._most_read = config, encoder, most_read
        self.max_length = max_length
        self.ahead = ReadAhead(reader.read, threads, wake)
        self._used = 0  # positions that were encoded in this round
        self.tasks: deque[Task] = deque()
        self.state = Condition()
        """Guards ``tasks``, and what the engine decides by them; notified when a task leaves the queue or ends."""

    def __len__(self) -> int:
        return len(self.tasks)

    def add(self, task: Task) -> None:
        """Append a task, in front of those with a higher number as priority. The caller holds ``state``."""
        # From the end, so that among requests of one priority the earlier one stays in front.
        place = len(self.tasks)
        while place and self.tasks[place - 1].request.priority > task.request.priority:
            place -= 1
        self.tasks.insert(place, task)

    def has_work(self) -> bool:
        """Return whether a task can be taken out now, because its media are read or because it was cancelled."""
        with self.state:
            return any(task.channel.cancelled or task.media_ready for task in self.tasks)

    def take_cancelled(self) -> list[Task]:
        """Remove and return the tasks that were cancelled."""
        with self.state:
            dropped = [task for task in self.tasks if task.channel.cancelled]
            for task in dropped:
                self.tasks.remove(task)
        return dropped

    def ready(self, most: int) -> list[Task]:
        """Return the first ``most`` tasks whose media are read."""
        with self.state:
            return [task for task in self.tasks if task.media_ready][:most]

    def read_ahead(self) -> None:
        """Start reading the media of the tasks at the front."""
        with self.state:
            for task in list(self.tasks)[: self._most_read]:
                if not task.media_asked:
                    pairs = zip(task.media_keys, task.request.media, strict=True)
                    task.readings = [self.ahead.ask(key, part) for key, part in pairs]

    def begin_round(self) -> None:
        """Let :meth:`encode` use the encoders again; the engine does so after each decode step."""
        self._used = 0

    def encode(self, tasks: list[Task], fail: Callable[[Task, BaseException], None]) -> list[Task]:
        """Encode media of tasks, as many as this round has room for, and name the positions of the prompts.

        Returns:
            The tasks whose media are all encoded, in order. The others stay in the queue for a later round; those that
            do not fit or have an unreadable medium leave it and are passed to ``fail``.
        """
        # A task whose media must be read again waits for that.
        good = [task for task in tasks if self._attempt(task, self._prepare, fail) and task.collected]
        # One pass of the encoder over media of several requests is faster than one for each.
        media, self._used = self._encoder.next_in_round([medium for task in good for medium in task.media], self._used)
        try:
            self._encoder.encode(media)
        except Exception:  # noqa: BLE001 - encoding one by one shows which task is at fault
            chosen = {id(medium) for medium in media}

            def encode_own(task: Task) -> None:
                self._encoder.encode([medium for medium in task.media if id(medium) in chosen])

            good = [task for task in good if self._attempt(task, encode_own, fail)]
        good = [task for task in good if task.encoded]
        for task in good:
            # A task that did not fit into the pass is offered here again; its positions have their names already.
            if not task.identity:
                task.name_positions(self._config)
        return good

    def _prepare(self, task: Task) -> None:
        # Requests that wait for a later round or could not join a pass come here again.
        if not self._collect(task):
            return
        # Another request may have brought the same content meanwhile.
        self._encoder.look_up(task.media)

    def _collect(self, task: Task) -> bool:
        """Take the media of a task, if it has not been done; returns False if they must be read again first."""
        while True:
            if not task.collected:
                task.collect_media()
                counts = [media_tokens(self._config, medium.kind, medium.frames) for medium in task.media]
                task.lay_out(self._config, counts, self.max_length)
            outdated = [self._encoder.is_outdated(medium) for medium in task.media]
            if not any(outdated):
                return True
            # Their pixels were dropped when they had tokens.
            task.read_again(self.ahead, outdated)
            if not task.media_ready:
                return False

    def _attempt(self, task: Task, work: Callable[[Task], None], fail: Callable[[Task, BaseException], None]) -> bool:
        """Do some work for a task and return whether it succeeded; a task whose work fails leaves the queue."""
        try:
            work(task)
        except Exception as error:  # noqa: BLE001 - any error ends only this request
            with self.state:
                self.tasks.remove(task)
            fail(task, error)
            return False
        return True
