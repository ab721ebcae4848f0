from .rescan import Setting as Setting
from .widget import explore as explore
