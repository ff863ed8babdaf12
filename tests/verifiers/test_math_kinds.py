r"""Kinds of answers that graders get wrong: for each, spellings of a reference that are right, and near misses.

`benchmarks/math_verifier.py --cases` measures such kinds on a file of other cases.
"""

import json
import re
from pathlib import Path

import pytest

from openprime.types import Prompt
from openprime.verifiers.math import verify_math

KINDS = {
    "a letter in another style is a letter, not a unit": r"""
        2\mathrm{i} ≡ 2i ≡ 2 \mathit{i} ≡ 2\text{i} ≡ i\cdot 2 ≢ 2 ≢ 2\mathrm{j} ≢ -2\mathrm{i} ≢ 2I
        1-5\mathrm{i} ≡ 1-5i ≡ -5\mathrm{i}+1 ≢ -4 ≢ 1-5 ≢ 1+5\mathrm{i}
        3\mathrm{e} ≡ 3e ≡ 3\cdot\mathrm{e} ≢ 3 ≢ 3\mathrm{x} ≢ 3e^2
        \frac{1}{2}+\frac{1}{2}\mathrm{i} ≡ \frac{1+i}{2} ≢ \frac12 ≢ 1 ≢ \frac{1-i}{2}
        2\mathbf{a}-3\mathbf{b} ≡ -3\mathbf{b}+2\mathbf{a} ≡ 2\boldsymbol{a}-3\bm{b} ≢ 2\mathbf{a}-3 ≢ -1
            ≢ 2\mathbf{a}-3\mathbf{c}
        5\mathrm{R} ≡ 5R ≢ 5 ≢ 5r
        5 ≡ 5\text{ m} ≡ \mathbf{5} ≢ 5\text{k} ≢ 5\mathrm{M} ≢ 5\text{K} ≢ 5\mathrm{b}
            ≢ 5\text{ K} ≢ 5m ≢ 5g ≢ 5k ≢ 5 xyz ≢ 5\,\mathrm{k} ≢ 5\text{ k} ≢ 5\mathrm{x}
        2\mathbf{i}+3\mathbf{j} ≡ 2\hat{i}+3\hat{j} ≡ 3\vec{j}+2\vec{i} ≢ 2i+3j ≢ 2\mathbf{i}
            ≢ 2\mathbf{j}+3\mathbf{i}
        \mathrm{e}^{2}\mathrm{d} ≡ e^2d ≢ e^2 ≢ 2
    """,
    "tiny and huge numbers are compared to their last digit": r"""
        \frac{1}{45!} ≡ \frac{46}{46!} ≡ (45!)^{-1} ≢ \frac{1}{46!} ≢ 0 ≢ -\frac{1}{45!}
        \frac{1}{2004!} ≡ \frac{2005}{2005!} ≢ \frac{1}{2006!} ≢ \frac{1}{2005!}
        \frac{2^{1001}+1}{2^{1002}} ≡ \frac{1}{2}+2^{-1002} ≢ \frac12 ≢ \frac{1}{2^{1002}}
            ≢ \frac{2^{1001}-1}{2^{1002}}
        \sqrt{2}+\frac{1}{45!} ≡ \frac{1}{45!}+\sqrt2 ≡ \frac{46}{46!}+\frac{2}{\sqrt{2}} ≢ \sqrt{2}
            ≢ \sqrt{2}+\frac{1}{46!}
        \frac{\pi}{10^{60}} ≡ \pi\cdot 10^{-60} ≢ 0 ≢ \frac{\pi}{10^{61}} ≢ \frac{3}{10^{60}}
        e^{-200} ≡ \frac{1}{e^{200}} ≢ 0 ≢ e^{-201} ≢ e^{-200}+e^{-400}
        x+\frac{1}{60!} ≡ \frac{61}{61!}+x ≢ x ≢ x+\frac{1}{61!}
        1-2^{-300} ≡ \frac{2^{300}-1}{2^{300}} ≢ 1 ≢ 1-2^{-301}
        \left(0,\frac{1}{50!}\right) ≡ 0<x<\frac{51}{51!} ≢ \left(0,\frac{1}{51!}\right) ≢ (0,0)
        10^{100}
            ≡ 10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
            ≡ 100^{50} ≢ 10^{100}+1 ≢ 10^{101}
    """,
    "a unit that differs is wrong": r"""
        8:34\text{ p.m.} ≡ 8:34 PM ≡ 8\!:\!34\text{ pm} ≡ 20{:}34 ≢ 8:34\text{ a.m.} ≢ 8:35 pm ≢ 4:17 p.m.
        20\text{ miles} ≡ 20 ≡ 20 mi ≡ 20~\mathrm{miles} ≢ 20\text{ km} ≢ 20\text{ miles per hour}
            ≢ 20\text{ square miles} ≢ 20 min
        9\text{ min} ≡ 9 minutes ≡ 540 seconds ≡ 9 ≢ 9\text{ hours} ≢ 9 s ≢ 9 m
        20\%\text{ increase} ≡ 20\% ≡ 20\%\text{ increase} ≢ 20\%\text{ decrease} ≢ 30\%\text{ increase}
        32^{\circ}\mathrm{F} ≡ 32 ≡ 32^\circ F ≡ 32 degrees Fahrenheit ≢ 32^{\circ}\mathrm{C}
            ≢ 32 degrees Celsius
        80\text{ cents} ≡ \$0.80 ≡ 80 ≡ 0.8 dollars ≢ 80\text{ dollars} ≢ \$80 ≢ \$8
        5\text{ heads} ≡ 5 ≡ 5\text{ heads} ≢ 5\text{ tails} ≢ 5 red heads and 5 tails
        1\text{ odd} ≡ 1 ≢ 1\text{ even}
        2\text{ hours} ≡ 120 minutes ≡ 2 hr ≡ 2\text{ h} ≢ 120 seconds ≢ 2 days ≢ 2 months
        2400\mbox{ cm}^2 ≡ 0.24\text{ m}^2 ≡ 2400 square centimeters ≢ 24\text{ m}^2 ≢ 2400 cm
            ≢ 2400\text{ cm}^3
        5\text{ cm} ≡ 5 cm ≡ 50 mm ≡ 5cm ≢ 5\text{ in} ≢ 5\text{ kg} ≢ 5\text{ cookies}
        7 ≡ 7\text{ any words} ≡ 7 cookies ≡ 7cm ≢ 7\text{ million} ≢ 7 dozen ≢ 7\text{ squared} ≢ 7 thousand
            ≢ 7 times 8
    """,
    "commas": r"""
        3, 125 ≡ 3,125 ≡ 125\text{ and }3 ≡ 125, 3 ≢ 3125 ≢ 3{,}125 ≢ 3.125
        24,112 ≡ 24, 112 ≡ 112,24 ≢ 24112 ≢ 24\,112
        7, 100, 200 ≡ 200, 7, 100 ≢ 7100200 ≢ 7100, 200
        32349 ≡ 32,349 ≡ 32,\!349 ≡ 32 349 ≡ 32{,}349 ≢ 32, 349 ≢ 32,\ 349 ≢ \{32,349\} ≢ (32,349)
        (-2,1) ≡ (-2, 1) ≡ -2<x<1 ≢ -2,1 ≢ [-2,1] ≢ 1,-2 ≢ \{-2,1\}
        [0,6) ≡ 0\le t<6 ≢ 0,6 ≢ (0,6)
        (15,-29) ≡ 15,-29 ≢ -29,15 ≢ \{15,-29\}
        1,200x ≡ 1200x ≢ 1.2x ≢ 200x
        0,1 ≡ 1, 0 ≢ 01 ≢ 1
    """,
    "lists in words": r"""
        3,5,7 ≡ 3, 5, \text{ and } 7 ≡ 3,\ 5\text{ and }7 ≡ 7; 5; 3 ≡ 3\text{ or }5\text{ or }7 ≡ 3、5、7
            ≡ \{3,5,7\} ≡ 3, 5, or 7 ≢ 3, 5, \text{ and } 8 ≢ 3\text{ and }5 ≢ 3, 5, 7 and 9 ≢ 357
        19, 46, \text{ and } 82 ≡ 19, 46, and 82 ≡ 82,46,19 ≢ 21, 46, and 82 ≢ 19, 46
        1;2 ≡ 1,2 ≡ 2 ; 1 ≡ 1 \vee 2 ≢ 12 ≢ 1.2 ≢ (1,2) ≢ 1;3
        (-4,27);(2,15) ≡ (2,15), (-4,27) ≡ (-4,27)\text{ and }(2,15) ≡ (2,15)\text{ or }(-4,27) ≢ (-4,2);(27,15)
            ≢ (27,-4);(2,15) ≢ -4,27,2,15
        x=1, x=-2 ≡ x=1\text{ or }x=-2 ≡ x=-2;x=1 ≡ -2 and 1 ≡ x\in\{1,-2\} ≢ x=1, y=-2 ≢ x=-1 or x=2 ≢ x=1
        \text{A, D and F} ≡ F, A, D ≡ \text{A, D, F} ≢ A, D ≢ ADF
        \text{red and blue} ≡ blue, red ≡ red and blue ≢ red ≢ red or green
    """,
    "needless braces": r"""
        (1,3) ≡ {(1,3)} ≡ {{(1,3)}} ≡ {\left(1,3\right)} ≢ {1,3} ≢ {(3,1)}
        {1,2,3} ≡ \{1,2,3\} ≡ 3,2,1 ≡ {3,1,2} ≢ (1,2,3) ≢ {1,2} ≢ 123
        \frac{1}{2} ≡ {\frac{1}{2}} ≡ {{{0.5}}} ≡ {1}/{2} ≢ {2} ≢ {1,2}
        \{1,2\} ≡ {1,2} ≡ {{2,1}} ≢ {1},{3} ≢ [1,2]
        \{5\} ≡ 5 ≡ {5} ≢ 6 ≢ \{5,5\}
    """,
    "numbers with e": r"""
        3.83e35 ≡ 3.83\times10^{35} ≡ 3.83\cdot 10^{35} ≡ 3.83E35 ≡ 3.83e+35 ≡ 3.83*10^35 ≢ 3.83e34 ≢ 3.83
            ≢ 3.83\times 10^{-35} ≢ 3.83e
        8.7\times 10^{8} ≡ 8.7e8 ≡ 870000000 ≡ 8.7E+08 ≡ 8.7 x 10^8 ≡ 870,000,000 ≢ 8.7e9 ≢ 8.78 ≢ 8.7e-8
        1000 ≡ 1e3 ≡ 1E3 ≡ 1.0e3 ≢ 1e4 ≢ 1e ≢ 13
        0.002 ≡ 2e-3 ≡ 2E-3 ≡ 2.0e-03 ≢ 2e-4 ≢ -1 ≢ 2e3
        6.02\times 10^{23}\text{ mol}^{-1} ≡ 6.02e23 ≢ 6.02e22
        2e-3 ≡ -3+2e ≢ 2e ≢ -1
    """,
    "a calculation or a name before the value": r"""
        8 ≡ 3+5=8 ≡ = 8 ≡ x=\frac{16}{2}=8 ≡ 8=x ≡ \text{Area}=8 ≡ 2^3 = 8 ≡ n = 8 ≢ 8=7 ≢ 3+5=9 ≢ 7=8 ≢ 8=8
            ≢ x=8=9 ≢ 2x=8 ≢ x^2=8 ≢ x+3=8
        0.5 ≡ P=\frac12=0.5 ≡ \frac{1}{2} = 0.5 ≡ P(A)=\frac{1}{2} ≢ P=0.5=0.6 ≢ \frac13=0.5
        0.56 = 56\% ≡ 56\% ≡ 0.56 ≢ 0.56\% ≢ 57\%
        x=3 ≡ 3 ≡ x=3 ≡ x=\sqrt{9}=3 ≢ y=3 ≢ x=-3 ≢ -3
        y=2x+1 ≡ 2x+1 ≡ y-2x=1 ≡ y=1+2x ≡ 2y=4x+2 ≢ y=2x ≢ x=2y+1 ≢ y=2x+1=0
        \frac{\sqrt{3}}{3} ≡ \frac{1}{\sqrt3}\approx 0.577 ≡ \tan 30^\circ = \frac{1}{\sqrt{3}} ≢ \approx 0.577
            ≢ \frac{1}{\sqrt2}\approx 0.577
        y''+2y=0 ≡ y^{\prime\prime} = -2y ≢ y'+2y=0 ≢ y''-2y=0
        xy=2 ≡ y=\frac{2}{x} ≢ 2 ≢ xy=3
    """,
    "relations in other signs": r"""
        x\neq 5 ≡ x != 5 ≡ x\not=5 ≡ x≠5 ≡ x<>5 ≡ 5\ne x ≢ x=5 ≢ 5 ≢ x\neq 6
        x\ge 2 ≡ x>=2 ≡ x\geqslant 2 ≡ x≥2 ≡ [2,\infty) ≡ 2\le x ≡ x \in [2,\infty) ≡ [2,+\infty) ≢ x>2 ≢ x<=2
            ≢ (2,\infty) ≢ x=2
        -1<x\leqslant 4 ≡ -1<x<=4 ≡ (-1,4] ≡ x\in(-1,4] ≡ ]-1,4] ≡ 4\ge x>-1 ≡ x>-1\text{ and }x\le 4 ≢ -1<=x<4
            ≢ (-1,4) ≢ [-1,4] ≢ x>-1\text{ or }x\le 4
        a<=b ≡ a\leq b ≡ b>=a ≢ a<b ≢ b<=a
        s^2\le 8r^2 ≡ 8r^2\geqslant s^2 ≡ s^2<=8r^2 ≢ s^2<8r^2 ≢ s^2>=8r^2
        x\notin\{1\} ≡ x\not\in\{1\} ≢ x\in\{1\}
    """,
    "the letter of an option": r"""
        \text{(D) Alina} ≡ D ≡ (D) ≡ Alina ≡ \text{D} ≡ D. Alina ≡ \textbf{(D)} ≢ A ≢ (E) ≢ Bob ≢ (D) Bob
            ≢ Alina or Bob
        A ≡ \text{(A) } 5 ≡ A) 5 ≡ A: 5 ≡ A. 5 ≡ (A) ≡ \textbf{(A)}\ 5 ≡ \text{Option A} ≡ (A)\ \frac{1}{2}
            ≢ B) 5 ≢ AB ≢ A and B ≢ (B) A ≢ 5 ≢ a
        \textbf{(A)}\ 5 ≡ A ≡ 5 ≡ (A) 5 ≡ (A) ≢ B ≢ 6 ≢ (A) 6 ≢ (B) 5
        C. 1-\mathrm{i} ≡ 1-i ≡ C ≡ C. 1-i ≢ 1+i ≢ B ≢ D. 1-i
        \frac{1}{2} ≡ \text{(B) }\frac12 ≡ (B) 0.5 ≢ (B) ≢ (B) \frac13
        (B), (D) ≡ B, D ≡ D and B ≢ B ≢ B, C
    """,
    "thousands inside an expression": r"""
        20000\pi ≡ 20,000\pi ≡ 20{,}000\pi ≡ 20\,000 \pi ≢ 20\pi ≢ 2,0000\pi ≢ 20, 000\pi
        20,000\pi ≡ 20000\pi ≢ 20\pi ≢ 2000\pi
        \frac{1}{1000} ≡ \frac{1}{1,000} ≡ 1/1,000 ≢ \frac{1}{1,00} ≢ \frac{1}{100}
        \$12,500 ≡ 12500 ≡ 12,500 ≡ 12500\text{ dollars} ≢ 12.5 ≢ \$125,00
        12,345\text{ km} ≡ 12345 ≡ 12{,}345\text{ km} ≢ 12 ≢ 345 km
        1,000\sqrt{3} ≡ 1000\sqrt{3} ≢ \sqrt{3}
        1,234.5 ≡ 1234.5 ≢ 1,234 ≢ 234.5
    """,
    "sets of numbers in other words": r"""
        (-\infty,2)\cup(3,\infty) ≡ x<2\text{ or }x>3 ≡ x\in(-\infty,2)\cup(3,\infty)
            ≡ \{x\mid x<2\text{ or }x>3\} ≡ \mathbb{R}\setminus[2,3] ≡ (-∞,2)∪(3,∞) ≡ (3,\infty)\cup(-\infty,2)
            ≢ x<2\text{ and }x>3 ≢ x\le 2\text{ or }x>3 ≢ (-\infty,2)\cap(3,\infty) ≢ 2<x<3
            ≢ \mathbb{R}\setminus(2,3) ≢ (-\infty,2)\cup(4,\infty)
        (-\infty,\infty) ≡ \mathbb{R} ≡ \text{all real numbers} ≡ ℝ ≡ x\in\mathbb R ≡ -\infty<x<\infty
            ≡ \text{all reals} ≢ \mathbb{Z} ≢ \mathbb{R}^+ ≢ [0,\infty) ≢ \mathbb{R}\setminus\{0\} ≢ \emptyset
        \mathbb{R}\setminus\{1\} ≡ x\ne 1 ≡ (-\infty,1)\cup(1,\infty) ≡ \mathbb{R}-\{1\}
            ≡ \{x\in\mathbb{R}: x\neq 1\} ≡ \text{all real numbers except }1 ≡ x<1\text{ or }x>1 ≢ \mathbb{R}
            ≢ x\ne 2 ≢ x=1 ≢ \mathbb{R}\setminus\{1,2\} ≢ (-\infty,1]\cup(1,\infty)
        [1,2]\cup[5,7] ≡ 1\le x\le2\text{ or }5\le x\le 7 ≡ [5,7]\cup[1,2] ≡ [1,\frac32]\cup[\frac32,2]\cup[5,7]
            ≢ [1,7] ≢ [1,2]\cap[5,7] ≢ [1,2],[5,8]
        1\leq |z|\leq\frac32 ≡ z\in[-\frac32,-1]\cup[1,\frac32] ≢ [1,\frac32] ≢ [-\frac32,\frac32]
        |x|<3 ≡ (-3,3) ≡ -3<x<3 ≢ (0,3) ≢ |x|>3 ≢ [-3,3]
        -80\leq g(x)\leq 82 ≡ [-80,82] ≡ g(x)\in[-80,82] ≢ [-80,82) ≢ (-80,82)
        x\ne 0,1 ≡ x\neq 0\text{ and }x\neq 1 ≡ \mathbb{R}\setminus\{0,1\} ≡ (-\infty,0)\cup(0,1)\cup(1,\infty)
            ≢ x\ne 0 ≢ \{0,1\} ≢ x\ne 0,2
        (a,b) ≡ a<x<b ≢ a<x\le b ≢ [a,b]
        \text{No solution} ≡ \emptyset ≡ \varnothing ≡ \text{no solutions} ≡ ∅ ≡ \{\} ≡ \text{No real solution}
            ≢ 0 ≢ \{0\} ≢ \{\emptyset\} ≢ \text{one solution}
        all integers ≡ \mathbb{Z} ≡ n\in\mathbb{Z} ≢ \mathbb{R} ≢ \mathbb{N}
        (0,9)\cup(9,36) ≡ 0<x<9\text{ or }9<x<36 ≢ (0,36) ≢ 0<x\le9\text{ or }9<x<36
        x>2, x\neq 5 ≡ (2,5)\cup(5,\infty) ≡ x>2\text{ and }x\neq 5 ≢ x>2 ≢ x\neq 5
    """,
    "French intervals": r"""
        [1,2) ≡ [1,2[ ≡ \left[1,2\right[ ≢ ]1,2] ≢ ]1,2[ ≢ [1,2]
        ]1,2[ ≡ (1,2) ≡ 1<x<2 ≡ \left]1;2\right[ ≢ [1,2] ≢ (1,2]
        (-\infty,0] ≡ ]-\infty,0] ≡ ]-\infty;0] ≢ ]-\infty,0[ ≢ [0,\infty[
        (1,2)\cup(3,4) ≡ ]1,2[\cup]3,4[ ≢ [1,2]\cup[3,4]
    """,
    "names before tuples, and systems": r"""
        (1,2) ≡ x=1,y=2 ≡ (x,y)=(1,2) ≡ \begin{cases}x=1\\y=2\end{cases} ≡ y=2, x=1 ≡ x=1\text{ and }y=2
            ≡ \left\{\begin{array}{l}x=1\\y=2\end{array}\right. ≢ x=2,y=1 ≢ (x,y)=(2,1) ≢ x=1 ≢ x=1, y=2, z=3
        x=1,y=2 ≡ (1,2) ≡ \begin{cases}x=1,\\y=2.\end{cases} ≡ (x,y)=(1,2) ≡ y=2;x=1 ≡ 1, 2 ≢ (2,1) ≢ x=2,y=1
            ≢ a=1,b=2 ≢ 2, 1 ≢ \{1,2\}
        (3,\frac{\pi}{2}) ≡ (r,\theta)=(3,\frac{\pi}{2}) ≡ (r, \theta) = \left(3,\dfrac{\pi}{2}\right)
            ≢ (\theta,r)=(\frac{\pi}{2},3) ≢ (r,\theta)=(3,\pi)
        p=5,q=2;p=7,q=2 ≡ (5,2),(7,2) ≡ (7,2); (5,2) ≡ p=7,q=2\text{ or }p=5,q=2 ≢ (2,5),(7,2) ≢ (5,2) ≢ 5,2,7,2
        AB=4,CD=5 ≡ 4, 5 ≡ CD=5, AB=4 ≢ 5, 4 ≢ AB=5, CD=4
        (x,y)=(1,2) ≡ x=1,y=2 ≡ (1,2) ≡ (y,x)=(2,1) ≢ (y,x)=(1,2) ≢ (a,b)=(1,2) ≢ (2,1)
        x_1=1,x_2=-3 ≡ 1,-3 ≡ -3, 1 ≢ 1,3
        a_3=2,a_{37}=19 ≡ a_{37}=19,\quad a_3=2 ≢ a_3=19,a_{37}=2 ≢ 19, 2
        a=4,-8,-10 ≡ -10,-8,4 ≢ 4,8,10
        [x=2, y=4, z=5] ≡ x=2,y=4,z=5 ≡ (2,4,5) ≢ (2,5,4)
    """,
    "vectors and matrices": r"""
        \begin{pmatrix}1\\2\end{pmatrix} ≡ (1,2) ≡ \langle 1,2\rangle ≡ \begin{bmatrix}1\\[2pt]2\end{bmatrix}
            ≡ \begin{bmatrix}1 & 2\end{bmatrix}^T ≡ \left(\begin{array}{c}1\\2\end{array}\right) ≢ (2,1)
            ≢ \begin{pmatrix}1&2\end{pmatrix} ≢ \{1,2\} ≢ 12 ≢ \begin{pmatrix}1\\3\end{pmatrix}
        (1,2) ≡ \begin{pmatrix}1\\2\end{pmatrix} ≡ \langle 1, 2\rangle ≡ ⟨1,2⟩
            ≢ \begin{pmatrix}2\\1\end{pmatrix} ≢ \langle 2,1\rangle ≢ [1,2]
        \begin{pmatrix}1&2\\3&4\end{pmatrix} ≡ \begin{bmatrix}1&2\\[3mm]3&4\end{bmatrix}
            ≡ \begin{array}{cc}1&2\\3&\frac{8}{2}\end{array} ≢ \begin{pmatrix}1&3\\2&4\end{pmatrix} ≢ (1,2,3,4)
            ≢ \begin{pmatrix}1&2&3&4\end{pmatrix}
    """,
    "synonyms of commands": r"""
        1,2,\ldots,9 ≡ 1,2,\dots,9 ≡ 1,2,\cdots,9 ≡ 1,2,...,9 ≢ 1,2,\dots,8 ≢ 1,2,9
        \emptyset ≡ \varnothing ≡ \{\} ≡ ∅ ≢ 0 ≢ \{0\}
        12:30 ≡ 12{:}30 ≡ 12\colon 30 ≡ 12\!:\!30 ≢ 12:03 ≢ 1230 ≢ 12.30
        \frac34 ≡ \nicefrac{3}{4} ≡ \tfrac34 ≡ \cfrac{3}{4} ≡ {3 \over 4} ≡ \frac 3 4 ≡ 3\div 4
            ≢ \nicefrac{4}{3} ≢ 34
        \binom{5}{2} ≡ \dbinom52 ≡ {5 \choose 2} ≡ 10 ≢ \binom{5}{1} ≢ 52
        \arctan x ≡ \tan^{-1} x ≡ \operatorname{arctan}(x) ≡ \mathrm{arctan}\,x ≢ \tan x ≢ \cot x ≢ \arctan y
        9:24 ≡ 3:8 ≡ 9 : 24 ≢ 8:3 ≢ 9/25
        |x| ≡ \lvert x\rvert ≡ \left|x\right| ≡ \vert x\vert ≢ x ≢ -x
    """,
    "Unicode": r"""
        3+2\sqrt{2} ≡ 3+2√2 ≡ 2√2+3 ≡ 3+2√(2) ≢ 3+√2 ≢ 5√2 ≢ 3+2√3
        x^2 ≡ x² ≡ x·x ≢ x³ ≢ 2x ≢ x2
        1.5 ≡ 1½ ≡ 3⁄2 ≡ 1 ½ ≢ 11/2 ≢ ½ ≢ 1⅓
        6 ≡ 2·3 ≡ 2×3 ≡ ２×３ ≡ ２⋅3 ≢ 2·4 ≢ 23
        x^{10}+y^{-1} ≡ x¹⁰+y⁻¹ ≢ x¹+y⁻¹ ≢ x¹⁰-y⁻¹
        a_1+a_2 ≡ a₁+a₂ ≢ a₁+a₃
        \alpha+2\theta ≡ α+2θ ≡ 2𝜃+𝛼 ≢ β+2θ
        (1)(3)(4) ≡ ①③④ ≡ (1),(3),(4) ≢ 12 ≢ ①②④ ≢ ①③ ≢ 134
        \sqrt[3]{5} ≡ ∛5 ≢ √5
        -2 ≡ −2 ≡ –2 ≢ 2
        x\in\mathbb{R} ≡ x∈ℝ ≢ x∈ℤ
    """,
    "currency": r"""
        5 ≡ €5 ≡ ¥5 ≡ £5 ≡ Rs. 5 ≡ 5€ ≡ \$5 ≡ 5\text{ USD} ≡ ₹5 ≡ US\$5 ≢ €6 ≢ \$0.05 ≢ 5 cents and 3 ≢ \$5,000
            ≢ €5 million
        \$5 ≡ 5 ≡ 5\text{ dollars} ≡ 500 cents ≢ €5 ≢ £5 ≢ 5 cents
        \$1.5\text{ million} ≡ \$1,500,000 ≡ 1500000 ≡ 1.5 million ≢ \$1.5 ≢ 1.5 billion
        €20 ≡ 20 euros ≡ 20 ≢ \$20 ≢ 2
    """,
    "plain text": r"""
        -2\pi ≡ -2*pi ≡ -2pi ≡ -2π ≡ -pi*2 ≢ -2*p ≢ -2 ≢ 2*pi
        \sqrt{2} ≡ sqrt(2) ≡ sqrt2 ≡ sqrt{2} ≡ 2^(1/2) ≡ 2**0.5 ≢ sqrt(3) ≢ 2 ≢ 2^1/2
        2\sqrt{3} ≡ 2sqrt3 ≡ 2*sqrt(3) ≡ sqrt(12) ≢ sqrt(6) ≢ 3sqrt2
        \sin(2x) ≡ sin(2x) ≡ sin(2*x) ≡ 2*sin(x)*cos(x) ≢ sin(x) ≢ 2sin(x)
        \frac{x+1}{2} ≡ (x+1)/2 ≡ (1/2)*(x+1) ≢ x+1/2 ≢ (x+1)/3
        \ln 2 ≡ ln(2) ≡ ln 2 ≡ log(2)/log(e) ≢ log2 ≢ ln 3
        x^{10} ≡ x^10 ≡ x**10 ≢ x^1 ≢ 10x
        (-\infty,3) ≡ (-infinity, 3) ≡ (-inf,3) ≡ (-oo, 3) ≡ x<3 ≢ (-3,3) ≢ (3,infinity)
        \theta ≡ theta ≢ phi
        5 ≡ 10/2 ≡ 5.0 ≢ sec ≢ five
    """,
    "roots and identities": r"""
        \frac{\sqrt{a}}{\sqrt{b}} ≡ \sqrt{\frac{a}{b}} ≡ \frac{\sqrt{ab}}{b} ≢ \frac{a}{b} ≢ \sqrt{\frac{b}{a}}
            ≢ \frac{\sqrt{a}}{b}
        \frac{\sqrt{6}}{3} ≡ \sqrt{\frac{2}{3}} ≡ \frac{2}{\sqrt6} ≢ \sqrt{\frac32} ≢ 0.8165
        \sqrt[3]{2} ≡ \sqrt[3]2 ≡ 2^{1/3} ≡ \frac{2}{\sqrt[3]{4}} ≢ \sqrt2 ≢ \sqrt[3]{3} ≢ 1.26 ≢ 3\sqrt2
        |x| ≡ \sqrt{x^2} ≢ x
        x ≡ \frac{x^2}{x} ≡ \sqrt[3]{x^3} ≢ \sqrt{x^2} ≢ |x|
        \sin 2x ≡ 2\sin x\cos x ≡ 2\cos(x)\sin x ≢ \sin^2 x ≢ 2\sin x
        (\gamma^2-1) m_p c^2 \sin^2\theta ≡ m_{p} c^{2}\left(\gamma^{2}-1\right) \sin ^{2} \theta
            ≢ m_p c^2(\gamma^2-1)\sin\theta ≢ m_q c^2(\gamma^2-1)\sin^2\theta
        \frac{e^x-e^{-x}}{2} ≡ \sinh x ≢ \cosh x
        \log_2 12 ≡ 2+\log_2 3 ≡ \frac{\ln 12}{\ln 2} ≢ \log_2 11 ≢ 3.585
        \lfloor x\rfloor ≡ \left\lfloor x\right\rfloor ≢ x ≢ \lceil x\rceil ≢ \lfloor x\rfloor+1
        \lfloor\sqrt{n-1}\rfloor ≡ \lfloor (n-1)^{1/2}\rfloor ≢ \lceil\sqrt{n-1}\rceil ≢ \sqrt{n-1}
        1 ≡ \sin^2 30^\circ+\cos^2 30^\circ ≢ \sin^2 x+\cos^2 x
    """,
    "recurring decimals": r"""
        \frac13 ≡ 0.\dot{3} ≡ 0.\overline{3} ≡ 0.\bar3 ≡ 0.(3) ≡ 0.333\ldots ≡ 0.333... ≡ .\overline{3} ≢ 0.3
            ≢ 0.333 ≢ 0.\dot{4} ≢ 0.3\dot{0}
        0.1\overline{6} ≡ \frac16 ≡ 0.1\dot6 ≡ 0.1(6) ≡ 0.1666... ≢ 0.16 ≢ 0.\overline{16} ≢ 0.1666
        \frac{41}{333} ≡ 0.\dot{1}2\dot{3} ≡ 0.\overline{123} ≡ 0.(123) ≡ 0.123123123\ldots ≢ 0.123 ≢ 0.12\dot3
        2.\overline{18} ≡ \frac{24}{11} ≡ 2\frac{2}{11} ≢ 2.18 ≢ 2.1\overline{8}
    """,
    "mixed numbers and fractions": r"""
        1.5 ≡ 1\ 1/2 ≡ 1 1/2 ≡ 1\frac12 ≡ 1\,\tfrac{1}{2} ≡ 3/2 ≡ {3}/{2} ≢ 11/2 ≢ 1 1/3 ≢ 1\cdot\frac12 ≢ 1/2
            ≢ 1, 1/2
        -2\frac{1}{3} ≡ -2 1/3 ≡ -7/3 ≡ -\frac{7}{3} ≢ -5/3 ≢ -2 2/3 ≢ 21/3
        3\frac{3}{4}\text{ cups} ≡ 3 3/4 ≡ 3.75 ≡ 3 3/4 cups ≢ 33/4 ≢ 9/4
        12 1/2 ≡ 12.5 ≡ 25/2 ≢ 121/2 ≢ 6
    """,
    "a reference with several forms": r"""
        \$\dfrac23 \approx \$0.67 ≡ \$0.67 ≡ \frac23 ≡ \frac{2}{3}\text{ dollars} ≢ 0.66 ≢ 0.7 ≢ \frac32
        \frac{40}{3} \approx 13.33\text{ minutes} ≡ \frac{40}{3} ≡ 13.33 ≢ 13 ≢ \frac{41}{3} ≢ 13.34
        x\approx 1.3098 ≡ 1.3098 ≡ x\approx 1.3098 ≡ \approx 1.3098 ≢ 1.31 ≢ x
        \text{No solution: }\varnothing ≡ \emptyset ≡ no solution ≢ 0 ≢ one solution
        -2\leqslant n\leqslant 4: [-2,4] ≡ [-2,4] ≡ -2\le n\le4 ≢ (-2,4) ≢ [-2,4) ≢ -2,4
        \frac{1}{2}\text{ or }0.5 ≡ 0.5 ≡ \frac12 ≢ 1/2, 1/3 ≢ 2 ≢ 0.5, 2
        1/2, 0.5 ≡ 0.5 ≡ 1/2 ≢ 1, 2 ≢ 0.25
        ["\\frac{1}{2}", "0.5"] ≡ 0.5 ≡ \frac{1}{2} ≢ 2
        ["1", "2"] ≡ 1, 2 ≡ 2,1 ≢ 1 ≢ 2
        \approx 8.24\text{ mph} ≡ 8.24 ≡ 8.24 mph ≢ 8.2 ≢ 8.24 kph
    """,
    "words around the answer": r"""
        n\pi\pm\pi/6, any integer $n$ ≡ n\pi\pm\frac{\pi}{6} ≡ n\pi\pm\frac{\pi}{6}, n\in\mathbb{Z}
            ≡ x=n\pi\pm\frac{\pi}{6}\text{ for any integer }n ≢ n\pi+\frac{\pi}{6} ≢ 2n\pi\pm\frac{\pi}{6}
        $2k+1$, where $k$ is an integer ≡ 2k+1 ≡ 2k+1, k\in\mathbb{Z} ≢ 2k ≢ k+1
        Solution is: $[x=2, y=4, z=5]$ ≡ x=2,y=4,z=5 ≡ (2,4,5) ≢ x=2,y=4 ≢ (2,5,4)
        7 ≡ \text{The answer is }7 ≡ The answer is: 7 ≡ \therefore x = 7 ≡ \text{Answer: }7 ≢ The answer is 8
            ≢ not 7 ≢ The answer is not 7
            ≢ \text{none of these is }7
        P(n)=(n+2a)^{2}-2a^{2} for some nonnegative integer $a$ ≡ P(n)=n^2+4an+2a^2 ≡ n^2+4an+2a^2
            ≢ P(n)=n^2+4an ≢ P(n)=n^2
        x^2+C, where $C$ is a constant ≡ x^2+C ≡ x^2+C, C\in\mathbb{R} ≢ x^2 ≢ x^2+D
    """,
    "compound units": r"""
        5 ≡ 5\ \mathrm{m}\cdot\mathrm{s}^{-1} ≡ 5\frac{\text{m}}{\text{s}} ≡ 5~\mathrm{kg\,m/s^2} ≡ 5\text{ m/s}
            ≡ 5 miles per hour ≡ 5 square feet ≢ 5\frac{m}{s} ≢ \frac{5\text{m}}{2} ≢ 5\mathrm{x}/\mathrm{y}
        6.608\mathrm{mi}/\mathrm{hr} ≡ 6.608 ≡ 6.608 mph ≡ 6.608 miles per hour ≢ 6.608 km/h ≢ 6.6 ≢ 6.608 miles
        15000\text{ kcal m}^{-2}\text{yr}^{-1} ≡ 15000 ≢ 1500 ≢ 15000 kcal
        10\text{ m/s} ≡ 10 ≡ 36\text{ km/h} ≡ 10\,\mathrm{m}\,\mathrm{s}^{-1} ≢ 10 km/h ≢ 36 ≢ 10\text{ m/s}^2
        4.4677\times 10^{14} Hz ≡ 4.4677\times10^{14} ≡ 4.4677e14 Hz ≢ 4.4677\times10^{13} ≢ 4.4677e14 m
        576\pi\;m^{2} ≡ 576\pi\text{ m}^2 ≡ 576\pi m^2 ≢ 576\pi ≢ 576 ≢ 576\pi\text{ cm}^2
        63^{\circ} 45^{\prime} ≡ 63.75^\circ ≡ 63.75 ≡ 63^\circ 45' ≢ 63.45^\circ ≢ 63 ≢ 45^\circ 63'
        5\text{ ft }3\text{ in} ≡ 63 inches ≡ 5.25\text{ feet} ≡ 5 ft 3 in ≢ 5.3 ft ≢ 53 in ≢ 8 ft
        2.5 \mathrm{~m} ≡ 2.5 ≡ 250\text{ cm} ≡ 2.5\text{ m} ≢ 25 ≢ 2.5\text{ km}
    """,
    "Chinese": r"""
        8722 ≡ 8722美元 ≡ 8722元 ≡ 8722\text{元} ≡ 8722 元 ≢ 8723美元 ≢ 8722万元
        192 ≡ 192\text{公斤} ≡ 192公斤 ≢ 19公斤
        192\text{公斤} ≡ 192 ≡ 192 kg ≡ 192千克 ≢ 192\text{克} ≢ 192米
        50000 ≡ 5万 ≡ 50000元 ≢ 5 ≢ 5千
        \text{第一象限} ≡ 第一象限 ≢ 第二象限
        (-2,5) ≡ （-2，5） ≢ （-2，6）
        3, 2 ≡ 3；2 ≡ 2，3 ≢ 3
        5平方米 ≡ 5 ≡ 5\text{ m}^2 ≢ 5米 ≢ 5立方米
    """,
    "numbers in a base": r"""
        4210_5 ≡ 4210_{5} ≡ 4210\text{ (base 5)} ≡ 4210_\text{five} ≡ (4210)_5 ≡ 4210_{(5)} ≡ 4210
            ≡ 4210\text{ base }5 ≡ 4210_{\text{five}} ≢ 4210_6 ≢ 4201_5 ≢ 4210_\text{six} ≢ 421 ≢ 4210 base 6
        1011_2 ≡ 1011 ≡ 1011_{2} ≢ 1011_3 ≢ 11 ≢ 1101_2
        AB_{16} ≡ \text{AB}_{16} ≢ BA_{16}
    """,
    "factorials and binomials": r"""
        120 ≡ 5! ≡ \binom{10}{3} ≡ \frac{6!}{3!} ≢ 6! ≢ \binom{10}{4} ≢ 5!+1
        \binom{2n}{n} ≡ \frac{(2n)!}{(n!)^2} ≡ \frac{(2n)!}{n!n!} ≢ \frac{(2n)!}{n!} ≢ \binom{2n}{n-1}
        (n-2)! ≡ \frac{(n-1)!}{n-1} ≡ (n - 2) ! ≢ (n-1)! ≢ n!-2
        \frac{100!}{2^{50}} ≡ 100!\cdot 2^{-50} ≢ \frac{100!}{2^{51}} ≢ \frac{99!}{2^{50}}
    """,
}
"""Of each kind: references, each with what is the same (≡) and what is not (≢)."""


def cases(table):
    """(reference, prediction, is it right) of a table."""
    for row in re.split(r"\n {8}(?! )", table.rstrip())[1:]:
        answer, *others = re.split(r"\s+([≡≢]) ", row)
        for sign, prediction in zip(others[::2], others[1::2], strict=True):
            yield answer, prediction, sign == "≡"


CASES = [(kind, *case) for kind, table in KINDS.items() for case in cases(table)]


@pytest.mark.parametrize(("kind", "answer", "prediction", "expected"), CASES)
def test_verify_math__of_every_kind_right_spellings_are_right_and_near_misses_wrong(
    kind, answer, prediction, expected
):
    (verdict,) = verify_math(Prompt("p", (), "", answer), [rf"So it is $\boxed{{{prediction}}}$."])
    assert verdict.outcome == float(expected)


def test_kinds__have_eight_cases_and_more_of_each_half_of_them_near_misses():
    for kind, table in KINDS.items():
        right = [expected for *_, expected in cases(table)]
        assert len(right) >= 8, kind
        assert min(right.count(True), right.count(False)) >= 4, kind


def test_verify_math__no_wrong_pair_of_the_benchmark_is_accepted_and_few_right_ones_are_rejected():
    file = Path(__file__).parents[2] / "benchmarks" / "math_pairs.jsonl"
    found = {True: [], False: []}
    for pair in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        prompt = Prompt("p", (), pair.get("question", ""), pair["answer"])
        (verdict,) = verify_math(prompt, [rf"\boxed{{{pair['prediction']}}}"])
        found[pair["right"]].append(verdict.outcome)
    assert len(found[False]) > 600 < len(found[True])
    assert sum(found[False]) == 0
    assert sum(found[True]) > 0.98 * len(found[True])
