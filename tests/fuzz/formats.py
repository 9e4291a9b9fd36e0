"""Every format that is tested. Each file registers its own when it is imported."""

from tests.fuzz import formats_calls as formats_calls
from tests.fuzz import formats_cli as formats_cli
from tests.fuzz import formats_data as formats_data
from tests.fuzz import formats_models as formats_models
from tests.fuzz import formats_runs as formats_runs
from tests.fuzz.harness import FORMATS as FORMATS
