"""An export made ready to run elsewhere: with a start script, a compose file, a card, an SBOM and checksums."""

from tunesmith.export.bundle.types import SERVERS, Bundled, Server, Story, server_for
from tunesmith.export.bundle.write import write_bundle

__all__ = ["SERVERS", "Bundled", "Server", "Story", "server_for", "write_bundle"]
