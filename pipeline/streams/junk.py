"""What systems and tools leave beside a person's files: the one list of what is never data."""

from __future__ import annotations

from fnmatch import fnmatchcase

# Compared without regard to case; * stands for anything.
FOLDERS = (
    # macOS
    "__macosx", ".appledouble", ".appledb", ".appledesktop", ".documentrevisions-v100",
    ".fseventsd", ".spotlight-v100", ".temporaryitems", ".trashes", "network trash folder",
    "temporary items",
    # Windows
    "$recycle.bin", "recycler", "system volume information",
    # Linux and network storage
    "lost+found", ".trash", ".trash-*", ".xdg-volume-info", ".thumbnails", ".snapshot",
    ".snapshots", ".zfs", "@eadir", "@tmp", "#recycle", "#snapshot", ".@__thumb", "@recycle",
    # tools
    ".ipynb_checkpoints", "__pycache__", ".cache", ".git", ".hg", ".svn", ".dvc", ".datalad",
    ".annex", ".idea", ".vscode", ".venv",
)  # fmt: skip
FILES = (
    "._*", ".ds_store", ".localized", ".apdisk", ".volumeicon.icns", "icon\r",
    "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
    "picasa.ini", ".picasa.ini", ".directory", ".nfs*", ".fuse_hidden*", ".~lock.*",
    "*@synoeastream", "*@synoresource", ".gitignore", ".gitattributes", ".gitkeep", ".gitmodules",
    ".keep",    ".nomedia", ".*.swp",
)  # fmt: skip


def is_junk_folder(name: str) -> bool:
    """Whether a folder of this name belongs to a system or a tool."""
    return _matches(name, FOLDERS)


def is_junk_file(name: str) -> bool:
    """Whether a file of this name belongs to a system or a tool."""
    return _matches(name, FILES)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    name = name.casefold()
    return any(fnmatchcase(name, pattern) for pattern in patterns)
