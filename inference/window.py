"""A window that shows pictures as they come, where there is a screen."""
from typing import Any

from PIL import Image

from util.errors import UserError


class Window:
    """Raises UserError where there is no screen, or no tkinter."""

    def __init__(self, title: str):
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise UserError("showing pictures needs tkinter (on Debian: apt install python3-tk python3-pil.imagetk)"
                            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise UserError(f"there is no screen to show pictures on ({error})") from error
        self._root.title(title)
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._as_photo: Any = ImageTk.PhotoImage
        self._photo: Any = None  # tkinter keeps no reference of its own
        self.closed = False
        for event in ("<Escape>", "q"):
            self._root.bind(event, lambda _: self.close())
        self._root.protocol("WM_DELETE_WINDOW", self.close)

    def show(self, picture: Image.Image) -> None:
        """At most as large as the screen."""
        if self.closed:
            return
        picture = picture.copy()
        picture.thumbnail((self._root.winfo_screenwidth(), self._root.winfo_screenheight() - 80))
        self._photo = self._as_photo(picture)
        self._label.configure(image=self._photo)
        self._root.update()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._root.destroy()
