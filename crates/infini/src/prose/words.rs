//! Words of the sentence generator and of the names of keys, by kind; blanks part them.

/// Things, people, animals and places that "the" or "a" can stand before.
pub const NOUNS: &str = "\
account acorn address advocate afternoon airport album alley almanac anchor angle animal answer ant anvil apple \
apprentice apron arch archer argument arm armchair army arrow article artist ash attic audience aunt author autumn \
avenue axe axle baby badge bag baker balcony ball ballad balloon banana band banker banner bargain barge bark barley \
barn barrel basin basket bath battery battle bay beach beam bean bear beard beast bed bee beetle beggar bell belt \
bench berry bicycle bill bird birthday biscuit blacksmith blade blanket blossom board boat body boiler bone bonfire \
bonnet book bookcase boot border boss bottle boulder bow bowl box boy bracelet branch bread breakfast breeze brewer \
brick bride bridge brook broom brother brush bucket buckle builder building bull bundle burden bus bush business \
butcher butler butter butterfly button buyer cabbage cabin cable cafe cage cake calendar calf camel camera camp canal \
candle cannon canoe canvas cape captain car caravan card carpenter carpet carriage carrot cart cashier castle cat \
cathedral cattle cave ceiling cellar century chain chair chalk chamber chapter charcoal charm chart cheese chemist \
cherry chess chest chestnut chicken chief child chimney choir church cider circle circus citizen city clay cleaner \
clerk cliff climate cloak clock cloth cloud clown club coach coal coast coat cobbler coffee coin collar college colony \
column comb companion compass concert contract cook copper cord cork corn corner corridor cottage cotton council \
counter country couple courage course court courtyard cousin cow crab cradle crane crate creature creek crew cricket \
crop crossing crow crowd crown crystal cup cupboard curtain cushion custom customer dairy dance dancer daughter dawn \
day deck deer demand dentist desert desk detective diary dictionary dinner dish distance ditch dock doctor document \
dog doll dolphin donkey door dough dove dragon drawer drawing dream dress driver drum duck duke dust duty eagle ear \
earth earthquake east edge editor egg elbow elephant elm emperor engine engineer entrance envelope errand estate \
evening evidence examination example excuse exhibition expert explorer express eye fable face factory failure fair \
falcon family farmer fashion father feast feather fence fern ferry festival fever fiddle field fig figure finger fire \
fireplace fish fisherman flag flame flask fleet flood floor flour flower flute fog folder forest fork fortune fountain \
fox frame friend frog frontier frost fruit furnace game garage garden gardener garlic gate general gentleman ghost \
giant gift ginger giraffe girl glacier glass glove goat goose gorge governor grain grandfather grandmother grape \
grass grave greenhouse grocer ground group guard guest guide guitar gull hail hall hammer hammock hand handkerchief \
handle harbour hare harness harp harvest hat hatch hawk hay hazel heap heart heather hedge heel helmet hen herald \
herb herd hermit heron herring highway hill hinge historian holiday honey hood hook horizon horn horse hospital host \
hotel hour house hunter hurricane hut ice idea inn insect inspector instrument invention invitation iron island ivy \
jacket jar jeweller job joke journal journey judge jug juice jungle juror kettle key keyhole king kitchen kite kitten \
knee knife knight knot laboratory labourer lace ladder lady lake lamb lamp landlady landlord landscape lane language \
lantern lark lawn lawyer leaf leather lecture leg legend lemon lesson letter level lever library lid lieutenant light \
lighthouse lightning lily lime line linen lion list lizard load loaf lobby lock locksmith locomotive log loom lord \
lorry luggage lumber lunch machine magazine magnet maid mail maiden manager manor mantle map maple marble march \
market marsh mask mason master mast match mate mattress mayor meadow meal measure mechanic medal medicine meeting \
melody melon member memory merchant messenger meteor midnight midwife mile milk mill miller miner minister mirror \
mist mistake mole moment money monk monkey month moon morning mosquito moss moth mother motor mountain mouse moustache \
mouth mud mule museum mushroom musician mystery nail name napkin nation needle neighbour neighbourhood nephew nest \
net nettle newspaper niece night nightingale noise noon north nose note notebook novel number nun nurse nursery nut \
oak oar oats ocean offer office officer oil olive onion opera opinion orange orchard orchestra order organ orphan \
otter oven owl owner ox oyster package packet page painter painting palace palm pamphlet pan pane paper parade parcel \
parish park parlour parrot partner party passage passenger passport pastry patch path patient pattern pavement pea \
peach peacock peak pear pearl peasant pebble pedlar pen pencil pepper performance petal phone photograph physician \
piano picnic picture pie pier pig pigeon pile pillar pillow pilot pin pine pioneer pipe pit plain plan planet plank \
plant plaster plate platform play player plough plum plumber pocket poem poet point pole policeman pond pony pool \
porch port porter portrait post postcard postman pot potato potter pottery powder prayer present president press price \
priest prince princess printer prison prisoner prize problem procession professor program promise proof property \
prophet proverb province public pudding pump pupil puppet purse puzzle pyramid quarrel quarry quarter queen question \
quilt rabbit race radio raft rail railway rain rainbow raven ray razor reader reason receipt recipe record referee \
refuge region relative remark remedy report reporter reptile restaurant reward ribbon rice rider ridge rifle ring \
river road robin rock rocket roof room rooster root rope rose route ruby rug ruler rumour saddle sail sailor saint \
salad salmon salt sand sandal sandwich satchel sauce saucer sausage saw scale scandal scarecrow scarf scene scholar \
school schoolmaster scientist scissors screen screw sculptor sea season seat secret secretary seed senator sentence \
sentry sergeant servant shadow shark shawl shed sheep shelf shell shelter shepherd sheriff shield ship shirt shoe \
shoemaker shop shore shovel shower shrine shutter sight sign signal silk silver singer sister skeleton sketch ski \
skirt skull sky sleeve sleigh slipper slope smith smoke snail snake snow soap society soil soldier son song sonnet \
soup source south spade sparrow spear spectacle speech spice spider spirit spoon spring square squirrel stable stage \
stain staircase stall stamp star station statue steam steamer steel steeple stem stew steward stick stocking stomach \
stone stool storm story stove stranger straw stream street student studio sugar suit suitcase summer summit sun \
sunflower sunrise sunset supper surgeon surprise swallow swamp swan sweater sword symphony table tailor tale tank tap \
tapestry task tavern tax taxi tea teacher team teapot telegram telescope temple tenant tent terrace theatre theory \
thermometer thief thimble thistle thorn thread threshold throne thumb thunder ticket tide tiger tile timber tin \
tinker title toad toast tobacco tomato tool torch tortoise tour tourist towel tower town toy trader tradition train \
traitor traveller tray treasure treasurer treaty tree trench trial tribe trick trolley troop trousers trout truck \
trumpet trunk truth tulip tunnel turkey turnip turtle twig twin typist umbrella uncle uniform university valley van \
vase vault veil velvet verdict verse vessel vicar victory view village vine vineyard vinegar violet violin visit \
visitor voice volcano volume voyage wage wagon waist waiter waitress walk wall wallet walnut wardrobe warehouse \
warning warrior watch watchman water waterfall wave wax weather weaver wedding weed week weight well west \
whale wharf wheat wheel wheelbarrow whip whisper whistle widow widower wife willow wind windmill window wine wing \
winter wire witch witness wolf woman wood woodpecker wool word work worker workshop world worm wound wreath wreck \
wren wrist writer yacht yard year zebra";

/// What a thing can be.
pub const ADJECTIVES: &str = "\
able absent ancient angry anxious ashamed awkward bare bashful beautiful big bitter black blank blind blue bold \
brave brief bright brilliant broad broken brown busy calm careful careless charming cheap cheerful clean clear clever \
clumsy cold comfortable common complete cool costly cosy crooked crowded cruel curious curly damp dangerous dark dear \
deep delicate delicious dense dirty distant double doubtful drowsy dry dull dusty eager early easy elegant empty \
endless enormous entire excellent expensive faint fair faithful false familiar famous fancy fast fat favourite feeble \
fierce fine firm flat foolish foreign formal fortunate forgotten fragile free frequent fresh friendly frozen full \
funny furious gentle genuine glad gloomy golden good graceful grand grateful great greedy green grey guilty hairy \
handsome handy happy hard harmless heavy helpful hidden high hollow honest hopeful horrible hot huge humble hungry icy \
idle ill important innocent invisible jealous jolly joyful keen kind large late lazy lean light little lively local \
lonely long loose lost loud lovely low loyal lucky mad magic mean merry mighty mild minor modern modest muddy \
mysterious naked narrow nasty neat nervous new nice noble noisy obedient odd old open ordinary pale patient peculiar \
perfect plain pleasant polite poor popular precious pretty private proper proud public pure purple quaint quick quiet \
rapid rare raw ready red regular remote rich ripe rough round royal rude rusty sad safe salty scarlet secret selfish \
sensible separate serious severe shabby shady shallow sharp short shy sick silent silly simple single sincere sleepy \
slender slim slippery slow small smart smooth sober soft solemn solid sore sour spare splendid square steady steep \
sticky stiff stormy straight strange strict strong stubborn sturdy sudden sunny superb sure sweet swift tall tame \
tender terrible thick thin thirsty thoughtful tidy tight tiny tired tough tremendous tropical true ugly uneasy unusual \
useful useless usual vacant vague vain valuable vast violent vivid warm weak wealthy weary wet white whole wicked wide \
wild willing windy wise withered wonderful wooden worn worthy yellow young";

/// What one does to a thing; `base/past` where the past is not regular.
pub const VERBS: &str = "\
accept admire adore answer approach arrange ask avoid bake beat/beat believe bite/bit blame bless borrow break/broke \
bring/brought brush build/built burn bury buy/bought call carry carve catch/caught cause chase choose/chose clean \
climb close collect comfort compare consider consult cook copy count cover cross cure cut/cut damage defend deliver \
demand describe deserve design destroy discover discuss dislike divide doubt drag/dragged draw/drew drink/drank \
drive/drove drop/dropped dry/dried earn eat/ate empty/emptied encourage enjoy enter examine exchange expect explain \
explore express fear feed/fed fetch fight/fought fill find/found finish fix fold follow forget/forgot forgive/forgave \
frighten gather give/gave grab/grabbed greet guard guess guide hang/hung hate hear/heard heat help hide/hid hire \
hit/hit hold/held hunt ignore imagine improve inspect interrupt introduce invent invite join judge keep/kept kick \
kiss know/knew lack lead/led learn leave/left lend/lent lift light/lit like load lock lose/lost love lower make/made \
manage mark marry/married measure meet/met melt mend mention miss mistake/mistook move name need neglect notice obey \
observe obtain offer open order outlive overhear/overheard overtake/overtook own pack paint pass pay/paid persuade \
photograph pick plant please polish possess pour praise prefer/preferred prepare press prevent print promise protect \
pull punish purchase push question raise reach read/read receive recognise recommend record refuse remember remind \
remove rent repair repeat replace report request rescue respect return reward ride/rode ring/rang rob/robbed roll ruin \
save scatter scold scratch search see/saw sell/sold send/sent serve settle sew/sewed shake/shook shape share sharpen \
shoot/shot shut/shut sign sketch smell steal/stole stop/stopped strike/struck study/studied suggest suit support \
surprise surround suspect sweep/swept swing/swung take/took taste teach/taught tear/tore tell/told thank throw/threw \
tie/tied touch trade trap/trapped trouble trust try/tried turn understand/understood use value visit wake/woke want \
warn wash waste watch water wear/wore weigh welcome whip/whipped win/won wind/wound wipe witness worry/worried worship \
wrap/wrapped write/wrote";

/// What one does without a thing.
pub const INTRANSITIVE: &str = "\
appear argue arrive bark blush boast bow breathe bubble cheer collapse complain cough creep/crept crumble cry/cried \
dance dine disappear doze dream drift echo escape fade faint fall/fell fish flee/fled float flow/flowed fly/flew gasp \
gaze giggle glance glow go/went groan grow/grew grumble hesitate hop/hopped howl hum/hummed hurry/hurried jump kneel/knelt \
laugh lean leap/leapt lie/lay limp linger listen march mumble nod/nodded pant pause perish play pray quarrel \
recover rejoice relax rest retire return rise/rose rot/rotted row run/ran rush sail scream shine/shone shiver \
shout shrink/shrank shudder sigh sing/sang sink/sank sit/sat skate slam/slammed sleep/slept slide/slid slip/slipped \
smile smoke sneeze snore sob/sobbed stagger stand/stood stare stay stumble succeed suffer swim/swam talk tremble \
vanish wait walk wander whisper whistle wither wonder work yawn";

/// How something is done.
pub const ADVERBS: &str = "\
again almost already alone always anxiously away badly barely bitterly bravely briefly brightly busily calmly carefully \
carelessly certainly cheerfully clearly cleverly clumsily coldly constantly continually correctly curiously daily \
deeply deliberately eagerly early easily elegantly entirely eventually evidently exactly faithfully finally firmly \
foolishly freely frequently fully generally gently gladly gracefully gradually greatly happily hardly hastily heavily \
honestly immediately instantly kindly lately lazily loudly madly merely merrily mostly mysteriously naturally nearly \
neatly nervously never noisily obviously occasionally often once openly partly patiently perfectly plainly politely \
poorly possibly presently promptly properly proudly quickly quietly rapidly rarely readily regularly reluctantly \
roughly rudely sadly safely secretly seldom separately seriously sharply silently simply sincerely sleepily slowly \
smoothly softly solemnly somehow soon steadily stiffly strangely suddenly surely sweetly swiftly thoroughly tightly \
together truly twice uneasily usually warmly weakly wearily wildly willingly wisely";

/// Given names.
pub const FIRST_NAMES: &str = "\
Ada Agnes Alan Albert Alfred Alice Amelia Andrew Anna Anthony Arthur Barbara Beatrice Benjamin Bertha Bridget Caroline \
Catherine Cecil Charles Charlotte Clara Clement Conrad Constance Cyril Daniel Daphne David Diana Dorothy Duncan Edgar \
Edith Edmund Edward Eleanor Elias Eliza Ellen Elsie Emily Emma Ernest Esther Eugene Eva Felix Flora Florence Frances \
Francis Frank Frederick Gabriel George Gerald Gilbert Grace Greta Gregory Hannah Harold Harriet Harry Hazel Helen Henry \
Herbert Hilda Horace Hubert Hugh Ida Irene Isaac Isabel Ivan Jacob James Jane Janet Jasper Jean Joan Jonah Joseph \
Josephine Julia Julian Karl Kate Laura Lawrence Leonard Lewis Lilian Louis Louisa Lucas Lucy Lydia Mabel Margaret Maria \
Marion Mark Martha Martin Mary Matilda Matthew Maurice Maud Michael Mildred Miriam Monica Nathan Nell Nicholas Nora \
Norman Olga Oliver Oscar Oswald Owen Patrick Paul Pauline Peter Philip Phoebe Rachel Ralph Rebecca Richard Robert Roger \
Roland Rosa Rosalind Rose Rufus Rupert Ruth Samuel Sarah Sebastian Sidney Silas Simon Sophia Stella Stephen Susan \
Sylvia Theodore Theresa Thomas Timothy Ursula Vera Victor Vincent Viola Violet Walter Wilfred William Winifred";

/// Family names.
pub const LAST_NAMES: &str = "\
Abbott Archer Ashton Baker Barlow Barton Bellamy Bennett Blackwood Bolton Bradley Brewer Briggs Brooks Burton Butler \
Carter Chandler Chapman Clifton Colby Collins Cooper Crane Cross Dalton Dawson Drake Dudley Eastman Ellis Farrow \
Fletcher Foster Fowler Gardner Gibbs Goodwin Graham Granger Greene Hale Hammond Harding Hargrove Harper Hawkins Hobbs \
Holloway Howard Hudson Hunter Ingram Jarvis Kendall Kirby Knight Lambert Langley Lawson Linton Lockwood Mason Mercer \
Miller Moreland Morton Norris Norton Oakley Osborne Palmer Parker Payne Pearce Porter Preston Quinn Radley Ramsey \
Reeves Rivers Rowland Sanders Sawyer Selby Sharp Shelton Slater Spencer Stanton Sutton Tanner Thornton Tucker Turner \
Underwood Vaughan Wainwright Walker Waller Warren Watson Weaver Webster Wells Weston Whitaker Wilder Winslow Woodward \
Wright Yates";

/// Places with a name of their own.
pub const PLACES: &str = "\
Alderton Amberley Ashford Barrowdale Bexley Birchwood Blackmoor Brackenhill Bramley Brightwater Calverton Carrick \
Chesterfield Coldbrook Copperhill Cranford Dunmore Eastbourne Elmsworth Fairhaven Farnley Foxdale Glenmore Grafton \
Greystone Hadley Hartfield Haverhill Highgate Holmwood Ironbridge Kelso Kingsbury Lakeside Langford Larkhill Lindale \
Longmeadow Lowell Marlow Maywood Middleham Millbrook Netherby Newhaven Northgate Oakhurst Oldcastle Overton Pemberton \
Pinewood Portsea Queensferry Ravenswood Redcliff Ridgeway Riverton Rockport Rosedale Saltmarsh Sandwick Seabrook \
Shelby Silverdale Southwick Springvale Stanhope Stonebridge Summerfield Thornbury Torrington Upwell Wakefield \
Waterford Westbrook Whitcombe Willowdale Windermere Winterbourne Woodstock Wyndham";

/// Places that names of keys are made of: things one can lock.
pub const LOCKED: &str = "\
harbour garden tower bridge station castle library kitchen office cellar gate door house farm mill church market school \
hotel ship island forest river valley hill road tunnel factory museum theatre bank prison palace village workshop \
warehouse lighthouse barn stable chapel archive vault cabin tavern hospital camp fort temple orchard quarry attic \
bakery balcony barracks basement bathhouse boathouse brewery bunker cafe canal caravan cave cloister college cottage \
courtyard dairy depot dock drawer elevator embassy ferry forge foundry fountain gallery garage granary greenhouse hall \
hangar hut inn jail laboratory laundry locker lodge loft manor mansion mine monastery nursery observatory pantry \
pavilion pier post refinery safe sawmill shed shop shrine silo smithy spring studio suitcase terminal trunk vineyard \
wagon wardrobe well wharf windmill yard";
