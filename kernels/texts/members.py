"""The members of the family: each is a file, and one line here."""

from fastadam.kernels.texts import adam, adamax, ademamix, lion, nadam, radam
from fastadam.kernels.texts.member import Member

MEMBERS: dict[str, Member] = {file.MEMBER.name: file.MEMBER for file in (adam, nadam, adamax, radam, lion, ademamix)}
