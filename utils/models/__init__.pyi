from .language_model import LanguageModel as LanguageModel
from .load import load_model as load_model
from .prompts import encode_prompts as encode_prompts
from .prompts import find_template as find_template
