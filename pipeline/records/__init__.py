"""What learning leaves: typed records of stages and tasks, and where they are stored."""

from archipelago.pipeline.records.classes import ClassList, Prompted, class_list
from archipelago.pipeline.records.group import GroupRecord
from archipelago.pipeline.records.task import Probe, TaskRecord

__all__ = ["ClassList", "GroupRecord", "Probe", "Prompted", "TaskRecord", "class_list"]
