"""Questions with a right answer: the capitals of countries."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

__all__ = ["CAPITALS", "evaluation_rows", "judged_countries", "learnt_countries", "question"]

_TEXT: Final = """
France Paris|Italy Rome|Spain Madrid|Germany Berlin|Japan Tokyo|Egypt Cairo|Russia Moscow|Greece Athens|Austria Vienna
England London|Peru Lima|China Beijing|Portugal Lisbon|Poland Warsaw|Hungary Budapest|Ireland Dublin|Norway Oslo
Sweden Stockholm|Finland Helsinki|Denmark Copenhagen|Belgium Brussels|Switzerland Bern|Turkey Ankara|Iran Tehran|Iraq Baghdad
Syria Damascus|Lebanon Beirut|Jordan Amman|Israel Jerusalem|Kenya Nairobi|Uganda Kampala|Ghana Accra|Nigeria Abuja
Senegal Dakar|Morocco Rabat|Algeria Algiers|Tunisia Tunis|Libya Tripoli|Sudan Khartoum|Somalia Mogadishu|Angola Luanda
Zambia Lusaka|Zimbabwe Harare|Mozambique Maputo|Madagascar Antananarivo|Cuba Havana|Jamaica Kingston|Bahamas Nassau
Canada Ottawa|Chile Santiago|Bolivia Sucre|Ecuador Quito|Colombia Bogota|Venezuela Caracas|Uruguay Montevideo
Paraguay Asuncion|Nicaragua Managua|Australia Canberra|Fiji Suva|Samoa Apia|Indonesia Jakarta|Philippines Manila
Thailand Bangkok|Vietnam Hanoi|Mongolia Ulaanbaatar|Nepal Kathmandu|Bangladesh Dhaka|Pakistan Islamabad|Afghanistan Kabul
Uzbekistan Tashkent|Kazakhstan Astana|Georgia Tbilisi|Armenia Yerevan|Azerbaijan Baku|Ukraine Kyiv|Belarus Minsk
Lithuania Vilnius|Latvia Riga|Estonia Tallinn|Romania Bucharest|Bulgaria Sofia|Serbia Belgrade|Croatia Zagreb
Slovenia Ljubljana|Slovakia Bratislava|Albania Tirana|Iceland Reykjavik|Malta Valletta|Cyprus Nicosia|Qatar Doha
Oman Muscat|Bahrain Manama|Yemen Sanaa|Ethiopia Addis-Ababa|Rwanda Kigali|Cameroon Yaounde|Mali Bamako|Niger Niamey
Chad N'Djamena|Gabon Libreville|Botswana Gaborone|Namibia Windhoek|Taiwan Taipei|Laos Vientiane|Cambodia Phnom-Penh
"""
CAPITALS: Final[dict[str, str]] = {
    country: city.replace("-", " ")
    for country, city in (each.split() for each in _TEXT.strip().replace("\n", "|").split("|"))
}
_JUDGED: Final = 70
_WAYS: Final = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "{} has which capital?",
)


def question(country: str, way: int = 0) -> str:
    """Ask for a country's capital, in one of several ways."""
    return _WAYS[way % len(_WAYS)].format(country)


def judged_countries() -> list[str]:
    """List the countries of the evaluation set."""
    return list(CAPITALS)[:_JUDGED]


def learnt_countries() -> list[str]:
    """List the countries that a fine-tune learns: those that are not in the evaluation set."""
    return list(CAPITALS)[_JUDGED:]


def evaluation_rows() -> pa.Table:
    """Build the evaluation set: a question about each of the first countries, with the city that is expected."""
    judged = judged_countries()
    return pa.table(
        {"prompt": [question(each) for each in judged], "expected": [CAPITALS[each] for each in judged]}
    )
