"""What learning leaves: typed records of stages and tasks, and where they are stored."""

from pipeline.records.classes import ClassList, Prompted, class_list
from pipeline.records.group import GroupRecord
from pipeline.records.task import Probe, TaskRecord

__all__ = ["ClassList", "GroupRecord", "Probe", "Prompted", "TaskRecord", "class_list"]
