"""What a picture says of its origin to any program that reads XMP: that a trained model made it.

No prompt and no setting stands here: those are the recipe's. Not a signature: it can be removed.
Source: ISO 16684-1 (XMP); IPTC Photo Metadata Standard, Digital Source Type.
"""

import re
from xml.sax.saxutils import quoteattr

XMP_KEYWORD = "XML:com.adobe.xmp"
"""The name of the text chunk in which a PNG carries its packet."""

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmp:CreatorTool={tool}
 Iptc4xmpExt:DigitalSourceType="{source}"/>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def xmp(software: str) -> str:
    """Write the packet of a picture that `software` drew. What XML cannot say becomes U+FFFD."""
    tool = quoteattr(_NOT_XML.sub("\ufffd", software))
    return _PACKET.format(tool=tool, source=TRAINED)
